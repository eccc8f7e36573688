"""mmsparse's models in other libraries; each module needs the one in its name."""
