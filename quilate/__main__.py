"""`python -m quilate` is `quilate`."""

from quilate.cli.main import main

main()
