# A config that names `mmsparse.X` needs no import. The hosts' inferencers, however,
# read the checkpoint before they build the model, and torch >= 2.6 reads mmengine's
# only once mmsparse is imported (mmsparse/checkpoint/mmengine.py).
custom_imports = dict(imports=['mmsparse.registry'], allow_failed_imports=False)
