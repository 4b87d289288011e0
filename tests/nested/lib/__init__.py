"""The library of the nested tests; runs in dom0 with nothing but Python's standard library."""
