"""The kernels inside other merge tools: each module has install(), uninstall() and counts().

None of them is needed to run the package, and none is imported by it.
"""
