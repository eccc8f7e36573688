"""A data set of a few handwritten digits, which takes a second to write."""

from unittest.mock import patch

from digits import dataset

SETTINGS = dataset.Settings(
    seed=3,
    train_scenes=12,
    val_scenes=8,
    train_images_per_scan=2,
    val_images_per_scan=1,
)
ALL_SCANS = dataset.load_scans(SETTINGS.seed)


def few_scans(seed):
    """Return 60 scans for training and 40 for validation, whatever the seed."""
    splits = {'train': ALL_SCANS.splits['train'][:60]}
    splits['val'] = ALL_SCANS.splits['val'][:40]
    return dataset.Scans(ALL_SCANS.images, ALL_SCANS.labels, splits)


def write_few_digits(out, settings=SETTINGS):
    with patch.object(dataset, 'load_scans', few_scans):
        dataset.prepare(out, settings, force=False)
