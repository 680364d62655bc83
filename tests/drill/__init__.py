"""The fault drill: commands are disturbed at random, run again, and compared with themselves
undisturbed.
"""
