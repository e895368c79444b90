"""The examples of the mission's documents, each as a test with its numbers."""
