"""Program: `python -m gpuspawner.service`, a service of the Hub and a process of its own.

It reads the labels of the containers, lets the pure `guard` judge, and stops servers over the Hub's REST API, each with
its reason. Nothing else depends on it: while it is down, nobody is warned or stopped, and all the rest works.

`settings` is what it is told by its environment, `watch` the loop.
"""
