"""What a recipe will cost before it runs: tokens, FLOPs, memory, time and price of every stage."""
