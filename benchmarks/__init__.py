"""Benchmarks of the package on this machine. They import the package, which never imports them."""
