"""Other ways to an activation: chats, tensors of other libraries, two models side by side."""
