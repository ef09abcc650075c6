"""What comes next: belief, prices, choice, intake, proof, and the scheduler that leads them."""
