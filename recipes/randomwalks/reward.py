"""The reward of recipes/randomwalks.yaml: how near a walk comes to the shortest one."""

from quilate.tasks.randomwalks import RandomWalks

optimality = RandomWalks.make().reward
