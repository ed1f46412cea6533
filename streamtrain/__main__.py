"""``python -m streamtrain``: the command line."""

from streamtrain.cli import main

main()
