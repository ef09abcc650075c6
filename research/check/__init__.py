"""Tools that attack the researcher: random and broken recipes, kills, made-up worlds."""
