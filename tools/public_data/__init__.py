"""Public data sets, from the files of their authors to those that the hosts read."""
