"""python -m sctrt.cli"""

from . import main

main()
