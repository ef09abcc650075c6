"""What comes next. Everything here follows from the ledger.

    book        what is written is known at once: the state, the belief and the prices now
    belief      arms and the posterior over them, at one state       price     seconds of a run, from what was measured
    choose      which search run next, and why                       intake    lanes are asked, the gate judges
    plan        the session's time                                   dispatch  the runs in flight
    proof       what one candidate's proof needs and says            ablation  which of its parts earn their place
    futility    whether a candidate is worth an attempt
    prove       a candidate's way from nomination to crown           champion  the crowned recipe's folder
    transfer    the champion beside the base elsewhere, which decides nothing
    retry       what the machine did to a run is no finding          claims    what a ledger claims, computed again
    scheduler   gives each idle worker its next run
"""
