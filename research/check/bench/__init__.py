"""The bench: claims that anyone can rerun. One module a subcommand, with `main(argv)`; __main__.py lists them."""
