"""What a run left behind, for people: its folders, its figures in Markdown, and the model card of what it trained."""
