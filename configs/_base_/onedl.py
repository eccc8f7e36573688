# Lets OneDL's mmengine find the configs of mmseg::, also under mim train: the first
# base of each file with such a base (mmsparse/onedl.py). mmengine refuses import lines.
__import__('mmsparse.registry')
