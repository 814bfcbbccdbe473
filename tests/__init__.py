"""The tests, one folder per tier; `standins` holds what takes the place of hardware."""
