"""What a teacher sees: outcomes turned into privileged context.

Owns `TeacherView` and the leak guard. One source of privileged context is one file. Nothing here knows what a loss
does with a teacher's scores.
"""
