"""What a session amounts to: every number comes from facts.py, and each of the others only shows it.

    verdict, in a sentence or as data; report, as pages; view, on a terminal; explain, of one run or recipe;
    figures, as plots; candidates, for a reviewer; card, for who gets the champion. pages fills in templates/, which
    hold all wording.
"""
