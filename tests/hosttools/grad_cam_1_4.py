"""Run a script with grad-cam 1.5 as with 1.4, whose maps accepted ``use_cuda``."""

import runpy
import sys

from pytorch_grad_cam import GradCAM

initialize = GradCAM.__init__


def accept(self, *args, use_cuda=False, **options):
    initialize(self, *args, **options)


GradCAM.__init__ = accept
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name='__main__')
