Feature: Transcripts
  What a stream said is kept, whole, with all it takes to say it again.

  Scenario: The transcript holds the stream's events
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    And I ask for the transcript of "story"
    Then it is answered
    And the transcript has the events "started, token, metrics, end"
    And the transcript says what the stream of "story" said

  Scenario: The transcript holds what it takes to decode the stream again
    Given a server
    When I send the task "story" with
      | seed        | 7   |
      | temperature | 0.8 |
    And I read the stream of "story" to its end
    And I ask for the transcript of "story"
    Then the transcript is of the kind "trace"
    And the transcript's metadata mention a prompt, a seed, a model, an engine and a sampler
    And the transcript's id is its digest

  Scenario: A canceled task has a transcript too
    Given a server
    And the long task "story" is running
    When I cancel "story"
    Then the stream of "story" ends because of "canceled"
    When I ask for the transcript of "story"
    Then it is answered
    And the transcript has the events "started, token, end"

  Scenario: Transcripts in a folder are there after a restart
    Given a server
    And artifacts are kept in a folder
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the transcript of "story" is there before and after a restart
