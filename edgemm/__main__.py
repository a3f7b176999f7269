"""`python -m edgemm`."""

from edgemm.cli.main import main

main()
