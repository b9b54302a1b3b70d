"""What calls reserve, what they are billed, and what budgets have left."""
