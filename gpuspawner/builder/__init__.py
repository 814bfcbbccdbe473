"""Adapter: builds images, finds what the lowest of them stands on, and tries a new one before anybody gets it.

Nothing here decides what is built, or when: that is `recipes` and `build_images`. `build` builds, `ground` finds
the base (`archive`, `certificates`), `settings` says what a build has to know of this machine's network, `glance` takes
a first look at the engine, `trial` runs a candidate as the Hub would.
"""
