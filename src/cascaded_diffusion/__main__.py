"""``python -m cascaded_diffusion`` is ``cdm``."""

from cascaded_diffusion.cli.app import main

if __name__ == "__main__":
    main()
