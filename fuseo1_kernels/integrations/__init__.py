"""The kernels inside other merge tools: each module has install(), uninstall() and counts().

The package neither needs nor imports them.
"""
