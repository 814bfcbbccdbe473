"""What stands in for hardware and for the machine in the tests: GPU driver, container toolkit, Docker engine.

Nothing here is imported by the package itself, and nothing here imports the package: a stand-in that shared
code with what it tests would agree with its mistakes.
"""
