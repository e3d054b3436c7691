"""Reinforcement learning: rewards, advantages, objectives and rollouts."""
