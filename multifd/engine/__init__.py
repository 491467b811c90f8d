"""The engines that move RAM: sender, receiver, relay, and what they are made of."""
