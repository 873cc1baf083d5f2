"""What a way of solving the task is worth: metrics, statistics, and the judgement over all of them."""
