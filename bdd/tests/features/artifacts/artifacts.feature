Feature: Artifacts
  A document has the same name everywhere, and comes back as it was given.

  Scenario: A document is stored and comes back whole
    Given a server
    When I store the artifact
      """
      {"kind": "plan", "content": {"steps": ["look", "leap"], "cost": 1.5}, "tags": ["a", "b"], "metadata": {"by": "me"}}
      """
    Then it is created
    And the answer tells "id, kind, digest, created_ms, tags"
    And the artifact's id is a digest
    When I ask for that artifact
    Then it is answered
    And the artifact holds what I stored

  Scenario: The same document has the same id, however it is written
    Given a server
    When I store the artifact
      """
      {"kind": "summary", "content": {"b": 1, "a": [1.0, "ü"]}}
      """
    And I store the artifact
      """
      { "content": {"a":[1,"\u00fc"], "b":1}, "kind":"summary" }
      """
    Then both artifacts have the same id

  Scenario: The id is the SHA-256 of the canonical document, so that anybody can check it
    Given a server
    When I store the artifact
      """
      {"kind": "plan", "content": {"b": "\u00fc", "a": 1.50}}
      """
    Then it is created
    And the artifact's id is "sha256:cedff2f32d998b080bf517250ecfa5b9cf7919e9ff5548c64d88900f6051cb1e"

  Scenario: A document that was changed on its way is not taken
    Given a server
    When I store the artifact
      """
      {"kind": "plan", "content": {"text": "changed"}, "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000"}
      """
    Then it is refused as "UNTRUSTED_ARTIFACT"

  Scenario: Another document has another id
    Given a server
    When I store the artifact
      """
      {"kind": "diff", "content": {"text": "one"}}
      """
    And I store the artifact
      """
      {"kind": "diff", "content": {"text": "two"}}
      """
    Then the artifacts have different ids

  Scenario: A document can name the one it came from
    Given a server
    When I store the artifact
      """
      {"kind": "plan", "content": {"text": "draft"}}
      """
    And I store an artifact that came from it
    And I ask for that artifact
    Then the artifact names the one it came from

  Scenario Outline: A document that <mistake> is refused
    Given a server
    When I store the artifact
      """
      <document>
      """
    Then it is refused as "INVALID_PARAMS"

    Examples:
      | mistake                | document                                         |
      | has no kind            | {"content": {}}                                  |
      | has an unknown kind    | {"kind": "poem", "content": {}}                  |
      | has no content         | {"kind": "plan"}                                 |
      | has a word for content | {"kind": "plan", "content": "x"}                 |
      | has a field too many   | {"kind": "plan", "content": {}, "colour": "red"} |
      | is not JSON            | {"kind": "plan",                                 |

  Scenario: A document that nobody stored is not found
    Given a server
    When I ask for "/v1/artifacts/sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    Then it is refused as "NOT_FOUND"

  Scenario: Documents in a folder are there after a restart
    Given a server
    And artifacts are kept in a folder
    When I store the artifact
      """
      {"kind": "other", "content": {"lasting": true}}
      """
    Then it is created
    When the server is started again
    And I ask for that artifact
    Then it is answered
    And the artifact holds what I stored

  Scenario: A document that was tampered with is not passed off as the real one
    Given a server
    And artifacts are kept in a folder
    When I store the artifact
      """
      {"kind": "other", "content": {"word": "honest"}}
      """
    And somebody changes "honest" to "forged" in the folder
    And the server is started again
    And I ask for that artifact
    Then it is refused, whatever the reason
