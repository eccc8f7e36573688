"""The report: a page, an image, and a record of measurements."""

from quickstart.report.write import columns, write

__all__ = ['columns', 'write']
