"""What a data set holds, before anything is trained on it: measures, problems, pictures for a person."""
