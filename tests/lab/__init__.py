"""The laboratory: disposable Debian machines on real btrfs, and packages made to break in them.

The one rule: nothing in here pretends. A machine is a real root on a real file system
with the real apt and dpkg in it; what a test proves in one is true outside.
"""
