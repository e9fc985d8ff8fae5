"""``python -m app.bench``: how responsive the page feels; see :mod:`app.bench.page`."""

from app.bench.page import main

main()
