"""What runs in the cloud: teacher, public bank, selection, distillation, rounds and the Flower ServerApp."""
