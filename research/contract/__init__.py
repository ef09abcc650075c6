"""What may be tried: the track, proposals as named diffs, and the gate that judges them."""
