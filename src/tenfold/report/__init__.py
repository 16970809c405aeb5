"""A self-contained HTML page about a compressed network. Needs `pip install tenfold[report]`."""
