"""Numbers that tell a falling loss from learning."""
