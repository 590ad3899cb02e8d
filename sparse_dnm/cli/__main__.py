"""python -m sparse_dnm.cli"""

from sparse_dnm.cli.app import main

main()
