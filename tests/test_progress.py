from fastdistill import progress


def test_silence_says_nothing(capsys):
    talk = progress.Silent()
    talk.say("hello")
    with talk.stage("distilling", 3) as advance:
        advance(1, "")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
