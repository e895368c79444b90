"""The microservice: models in, training through a queue, predictions out."""
