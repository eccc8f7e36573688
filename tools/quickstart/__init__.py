"""Three trainings on the digits: tools/quickstart.py."""
