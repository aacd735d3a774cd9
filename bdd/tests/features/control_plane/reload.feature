Feature: Changing the model under load
  A reload is all or nothing, and it is between two steps: who streams does not notice.

  Scenario: A task that runs while a new model comes still gets its end
    Given a server
    And a model "second" that is a sound copy
    When I send the task "story" with
      | max_tokens | 300  |
      | ignore_end | true |
    And I open the stream of "story"
    And 2 tokens of "story" have arrived
    And I reload the pool with the model "second"
    Then it is answered
    And the stream of "story" ends properly
    And the stream of "story" has 300 tokens

  Scenario: A task that runs while a bad model is refused does not notice
    Given a server
    And a model "bent" that is cut in half
    When I send the task "calm" with
      | max_tokens | 200  |
      | ignore_end | true |
    And I read the stream of "calm" to its end
    And I send a task "disturbed" that is the same as "calm"
    And I open the stream of "disturbed"
    And 2 tokens of "disturbed" have arrived
    And I reload the pool with the model "bent"
    Then it is refused as "RELOAD_CONFLICT"
    And the stream of "disturbed" ends properly
    And the tokens of "disturbed" are those of "calm", byte for byte

  Scenario: After a reload who asks for the old model is told that it has gone
    Given a server
    And a model "second" that is a sound copy
    When I reload the pool with the model "second"
    And I send the task "late"
    Then it is refused as "MODEL_DEPRECATED"
    And the refusal names "second"

  Scenario: A reload without a model is refused as a mistake
    Given a server
    When I send to "/v1/pools/default/reload" the text
      """
      {}
      """
    Then it is refused as "INVALID_PARAMS"
    And the refusal names "new_model_ref"
