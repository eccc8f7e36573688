"""Style of plots of a metric over a cost."""

MARKERS = 'osD^vP*X'
SPAN = 10  # percentage points of the axis of metrics, at least
