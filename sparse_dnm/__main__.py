"""python -m sparse_dnm"""

from sparse_dnm.cli import main

main()
