"""Metadata of mmsparse; the hosts are extras, because two stacks provide them."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Read ``__version__`` without importing the package, which needs torch."""
    source = (ROOT / 'mmsparse' / '__init__.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'$", source, re.MULTILINE)[1]


DIGITS = ['opencv-python', 'pillow', 'pycocotools', 'scikit-learn', 'tqdm']
EXPORT = ['onnx', 'onnxruntime', 'onnxscript']

EXTRAS = {
    # One of the next two, never both: they install the same modules.
    'openmmlab': [
        'mmengine>=0.10,<1',
        'mmcv>=2.1,<2.2',
        'mmdet>=3.3,<4',
        'mmsegmentation>=1.2.2,<2',
        'mmpretrain>=1.2,<2',
        'openmim>=0.3.9',
        'ftfy',  # mmsegmentation imports it and regex but does not require them.
        'regex',
    ],
    'onedl': [
        'onedl-mmengine>=0.10.8,<1',
        'onedl-mmcv>=2.3.3,<2.4',
        'onedl-mmdetection>=3.5,<4',
        'onedl-mmsegmentation>=1.4,<2',
        'onedl-mmpretrain>=1.3.4,<2',
    ],
    'digits': DIGITS,
    'export': EXPORT,
    'dev': [
        *DIGITS,
        *EXPORT,
        'codespell',
        'import-linter',
        'mypy',
        'pre-commit',
        'pydoclint',
        'pytest',
        'ruff',
        'safetensors',
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
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['mmsparse', 'mmsparse.*']),
    package_data={'mmsparse.visualization': ['page.html']},
    python_requires='>=3.10,<3.13',
    install_requires=['torch>=2.1', 'numpy'],
    extras_require=EXTRAS,
    zip_safe=False,
)
