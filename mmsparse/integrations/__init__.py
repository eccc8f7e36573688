"""Models of mmsparse as models of other frameworks; none of them is required."""
