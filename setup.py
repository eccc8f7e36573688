"""Package metadata; mmdet, mmseg and mmpretrain are extras, as two stacks provide them.

openmim expects configs, tools and the model index in folder ``.mim`` of an installed
package: wheels get a copy, editable installs get links.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / 'mmsparse'
FOR_MIM = ('configs', 'tools', 'weights', 'model-index.yml')
# Commands that need a clone, with their packages: they are not in the wheel.
FOR_CLONES = (
    *('install', 'install.py', 'matrix.py', 'quickstart', 'quickstart.py'),
    *('zoo_tables.py', 'weights_manifest.py', 'releases.yml'),
)


class BuildWithMim(build_py):
    """Build the package with a copy of the files for openmim."""

    def run(self) -> None:
        """Build, and replace the copy of an earlier build."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'mmsparse', '.mim')
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in FOR_MIM:
            if (ROOT / name).is_dir():
                ignore = shutil.ignore_patterns(*FOR_CLONES, '__pycache__')
                shutil.copytree(ROOT / name, target / name, ignore=ignore)
            else:
                shutil.copyfile(ROOT / name, target / name)


class EditableWithMim(editable_wheel):
    """Build an editable install with links to the files for openmim."""

    def run(self) -> None:
        """Build, and create the links."""
        super().run()
        links = PACKAGE / '.mim'
        links.mkdir(exist_ok=True)
        for name in FOR_MIM:
            link = links / name
            link.unlink(missing_ok=True)
            link.symlink_to(Path('..', '..', name))

    def _ensure_dist_info(self) -> None:
        # openmim and mmengine join the metadata's folder with the first line of
        # top_level.txt: an absolute path there points them to the clone.
        super()._ensure_dist_info()
        names = Path(self.dist_info_dir, 'top_level.txt')
        names.write_text(f'{PACKAGE}\nmmsparse\n', encoding='utf-8')


def read_version() -> str:
    """Read ``__version__`` without importing the package, which needs torch."""
    source = (ROOT / 'mmsparse' / '__init__.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", source, re.MULTILINE)[1]


MMENGINE = [
    'mmengine>=0.10,<1',
    'setuptools>=65,<81',  # openmim and mmengine import its pkg_resources.
]
DIGITS = ['opencv-python', 'pillow', 'pycocotools', 'scikit-learn', 'tqdm']
DOCS = ['furo', 'myst-parser', 'sphinx', 'sphinx-copybutton']
EXPORT = ['onnx', 'onnxruntime', 'onnxscript', 'onnxslim', 'openvino']
TENSORBOARD = ['tensorboard']  # for TensorboardVisBackend of mmengine
DEMO = [*MMENGINE, 'gradio', 'scikit-learn']
HUB = ['huggingface_hub>=0.25', 'safetensors']
# Other libraries that the tests use with mmsparse's models.
TESTED_WITH = ['grad-cam', 'seaborn', 'timm', 'wandb']

OPENMMLAB = [
    *MMENGINE,
    'mmdet>=3.3,<4',
    'mmsegmentation>=1.2.2,<2',
    'mmpretrain>=1.2,<2',
    'openmim>=0.3.9',
    'ftfy',  # mmsegmentation imports ftfy and regex but does not require them.
    'regex',
]

EXTRAS = {
    # Install one of the next three: they have the same modules.
    'openmmlab': [*OPENMMLAB, 'mmcv>=2.1,<2.2'],
    'lite': [*OPENMMLAB, 'mmcv-lite>=2.1,<2.2'],  # without compiled operators
    'onedl': [
        'onedl-mmengine>=0.10.8,<1',
        'onedl-mmcv>=2.3.3,<2.4',
        'onedl-mmdetection>=3.5,<4',
        'onedl-mmsegmentation>=1.4,<2',
        'onedl-mmpretrain>=1.3.4,<2',
        'onedl-mim>=0.5,<1',
    ],
    'backbones': [*MMENGINE, *HUB],  # create_model and create_backbone alone
    'demo': DEMO,
    'digits': DIGITS,
    'docs': DOCS,
    'export': EXPORT,
    'tensorboard': TENSORBOARD,
    'dev': [
        *DIGITS,
        *DOCS,
        *EXPORT,
        *TENSORBOARD,
        *DEMO,
        *HUB,
        *TESTED_WITH,
        'codespell',
        'hypothesis',
        'import-linter',
        'ipykernel',
        'mypy',
        'nbclient',
        'pre-commit',
        'pydoclint',
        'pytest',
        'pytest-cov',
        'pytest-xdist',
        'ruff',
        'shtab',  # writes tools/completion
    ],
}

setup(
    name='mmsparse',
    version=read_version(),
    description='Sparse-attention vision models for OpenMMLab 2.x',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The mmsparse authors',
    license='Apache-2.0',
    keywords='computer vision, sparse attention, object detection, segmentation',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['mmsparse', 'mmsparse.*']),
    package_data={
        'mmsparse': ['py.typed'],
        'mmsparse.ops': ['tuning/*.json'],
        'mmsparse.visualization': ['page.html'],
        'mmsparse.weights': ['weights.json'],
    },
    entry_points={'console_scripts': ['mmsparse=mmsparse.cli:main']},
    cmdclass={'build_py': BuildWithMim, 'editable_wheel': EditableWithMim},
    python_requires='>=3.10,<3.14',
    install_requires=['torch>=2.1', 'filelock', 'numpy', 'packaging'],
    extras_require=EXTRAS,
    zip_safe=False,
)
